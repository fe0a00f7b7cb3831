"""An OpenAI-compatible server over a team or an ensemble: one worker thread owns the engines, HTTP stands before it."""

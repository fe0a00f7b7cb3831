"""How a router learns which expert to trust, and when to speak up itself.

* `settings`    what a team file may say
* `run`         the stages in one resumable command; `stages` each of them, `run_folder` what may be written where
* `planning`    do the models fit together, what will a run cost? asked before anything large is loaded
* `data`        rows of text to token ids: examples and preference pairs
* `scoring`     what each expert says of the data: one expert in memory at a time, numbers on disk
* `pairs`       preference pairs of the team's own mistakes
* `trainers`    stage 1 (SFT, Eq. 2) and stage 2 (CDPO, Eq. 3): the router alone, the experts are numbers by now
* `processes`   several of them, each with a share of the work
"""

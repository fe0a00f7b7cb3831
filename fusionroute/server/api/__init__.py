"""What clients see: OpenAI's endpoints, what a request may say, what a reply looks like, who may ask."""

"""The paper's theorems on worlds so small that every response can be enumerated."""

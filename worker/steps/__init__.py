"""The compute half of the steps: engine calls between files, in the child process."""

"""The compute side of the steps: engine calls from files to files, in the child process."""

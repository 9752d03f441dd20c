"""Reading and writing: files of a run folder, checkpoints, and bounds on files from strangers."""

"""The parts of the bootstrap, which runs in the containers of jobs."""

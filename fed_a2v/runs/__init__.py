"""Files of a run, its console output, and tables of several runs."""

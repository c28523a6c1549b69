"""The command line, configuration from YAML and overrides, and the start of processes, local and on clusters."""

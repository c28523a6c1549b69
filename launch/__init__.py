"""Where a person starts things: the command line, configuration from YAML and overrides, and local processes."""

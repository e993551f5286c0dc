"""What any command needs: options, completion, logs, signals, exit codes."""

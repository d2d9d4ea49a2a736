"""Making a repository: for the people who sign, on machines of their own. No device imports this. See ota/README.md."""

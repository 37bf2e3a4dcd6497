"""What a reader does at the desk: set up, see the progress, update, export. Nothing here is needed to run a kernel."""

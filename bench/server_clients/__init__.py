"""Programs that call a server as other people's programs do."""

"""What ties the daemon to its host: sd_notify, the journal, log lines and the event catalogue."""

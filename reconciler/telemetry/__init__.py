"""Log lines, events, redaction, the ledger entry of each event, systemd notifications."""

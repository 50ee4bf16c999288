"""Process groups, rendezvous, agreement between ranks, and the watchdog."""

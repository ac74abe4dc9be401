"""What every service shares: settings, contracts, messaging, databases and telemetry."""

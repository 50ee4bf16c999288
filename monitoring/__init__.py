"""What operators and researchers see of a run: metrics, alerts, dashboards, reports."""

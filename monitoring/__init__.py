"""Monitoring of a run for operators and researchers: metrics, alerts, dashboards, reports."""

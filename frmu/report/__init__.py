"""Pictures and pages of what a federation learned and forgot."""

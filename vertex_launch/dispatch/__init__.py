"""A pass: from a tick to created CustomJobs, and from an ended job to its settled item."""

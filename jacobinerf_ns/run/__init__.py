"""A trained run that is opened: its capture, its photos, and its views with labels."""

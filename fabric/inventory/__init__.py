"""What Ray's own tables say: nodes, drains, drivers, placement groups. Read, never decided here."""

"""The journal's room: so far its followers, and what they make of it for reading. Store, writer and replay are to come here."""

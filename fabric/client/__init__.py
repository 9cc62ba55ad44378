"""What any client of a fabric needs: where the door is, how it is called, and what is said of a call that failed."""

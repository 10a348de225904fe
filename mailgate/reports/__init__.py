"""What mailgate tells others about mail."""

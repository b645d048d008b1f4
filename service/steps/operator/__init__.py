"""What an operator asks for: register, retry, withdraw, restore."""

"""Steps of an operator: register, retry, withdraw, restore."""

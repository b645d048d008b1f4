"""What keeps submitted text private: envelope encryption and commitments."""

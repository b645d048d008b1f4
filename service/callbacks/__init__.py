"""What is told to whom when a request has come further, in each platform's dialect, and how it is sent."""

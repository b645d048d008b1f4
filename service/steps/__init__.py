"""The steps of the service, on the database side. Steps do not call each other."""

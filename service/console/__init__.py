"""The console: pages for the people who answer for deletions. A page calls the API for whoever is signed in.

It can do nothing that the API would not let that person's key do, and knows nothing that the API does not answer.
"""

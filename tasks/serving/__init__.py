"""`perfusion serve`: the champions of a family over HTTP, exchanged while they serve.

bodies     what a request and an answer hold
answers    a question put to one loaded model
worker     one thread for a role's models, and a queue with an end
champions  what serves, and following the registry's aliases
app        the routes, and what becomes of every refusal
"""

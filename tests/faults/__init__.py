"""What goes wrong at a bad moment: every fault in every phase of a request's life.

requests   kinds of requests, and what stock vLLM answers them
phases     moments in the life of a request, and how to get there
faults     what may happen then
matrix     every fault in every phase
machine    faults in any order, found by hypothesis

``python -m tests.faults`` runs all cases and prints their table; with ``--minutes N`` the machine.
"""

"""What is promised of money in 50 faults, and the runs that show it; ``docs/reliability.md`` is made from them."""

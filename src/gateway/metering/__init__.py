"""What a stream costs while it flows: token counting, prices, and the meter that puts them together.

The only room that computes money. Prices are integer pico-USD per token, so that 0.0375 USD per million tokens is
exactly 37,500; a stream's cost is summed exactly and rounded up to a micro-USD once.
"""

"""Responses that can be asked for later: kept in Redis for a while, each within its account.

What a response is made of is the business of ``protocols.openai_responses``; here it is JSON text with an owner, an
end, and one that came before it.
"""

-- Forget one response.
--   responses, ends: see keep.lua
-- KEYS: responses ends
-- ARGV: id
-- returns {1 it was there | 0}
local R, E, id = KEYS[1], KEYS[2], ARGV[1]
local text = redis.call('HGET', R, '<' .. id)
if not text then return {0} end
redis.call('HINCRBY', R, 'bytes', '-' .. string.match(text, '^%d+'))
redis.call('HDEL', R, id, '<' .. id)
redis.call('ZREM', E, id)
return {1}

-- Add credit (or take it back, with a negative amount), once per grant id.
-- KEYS: wallet grants ledger
-- ARGV: grant_id amount
-- returns {code, granted}
--   1 done   2 done before   5 the id was used for another amount   -2 would leave less than nothing   -12 too large
-- time: TIME of the server
local W, H, G = KEYS[1], KEYS[2], KEYS[3]
local id, amount = ARGV[1], tonumber(ARGV[2])
local w = redis.call('HMGET', W, 'g', 's', 'h')
local before = redis.call('HGET', H, id)
if before then
  if tonumber(before) ~= amount then return {5, num(w[1])} end
  return {2, num(w[1])}
end
local granted = num(w[1]) + amount
if granted > MAX_AMOUNT then return {-12, num(w[1])} end
if granted - num(w[2]) - num(w[3]) < 0 then return {-2, num(w[1])} end
redis.call('HSET', H, id, int(amount))
redis.call('HINCRBY', W, 'g', int(amount))
redis.call('XADD', G, '*', 'op', 'grant', 'sid', id, 'd', int(amount), 'o', '0', 'out', '', 'rec', '{}')
return {1, granted}

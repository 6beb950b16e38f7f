-- Grow a stream's hold to the absolute `target`, record its absolute use, renew its leases. Safe to repeat.
-- Near the end of the balance a stream gets less: its share of half of it, but at least what takes it to `need`,
-- the hold without which it cannot go on. Where even that is not there nothing is taken, and others may have it.
-- KEYS: wallet record leases slots*
-- ARGV: sid used need target lease_ms
-- returns {code, held, available}
--   1 done (held may be below target)   -1 no wallet   -6 suspended   -10 finished or reaped   -11 unknown
-- time: TIME of the server
local W, R, L = KEYS[1], KEYS[2], KEYS[3]
local sid, used, need, target, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local w = redis.call('HMGET', W, 'g', 's', 'h', 'x')
if not w[1] then return {-1, 0, 0} end
local available = num(w[1]) - num(w[2]) - num(w[3])
local r = redis.call('HMGET', R, 'st', 'h', 'u')
if not r[1] then return {-11, 0, available} end
local held = num(r[2])
if r[1] ~= 'open' then return {-10, held, available} end

local grow = 0
if not w[4] and target > held and need - held <= available then
  local share = math.floor(available / (2 * math.max(1, redis.call('ZCARD', L))))
  grow = math.min(target - held, math.max(need - held, share), available)
end

local lease_end = int(now + lease)
if grow > 0 then redis.call('HINCRBY', W, 'h', int(grow)) end
redis.call('HSET', R, 'h', int(held + grow), 'u', int(math.max(num(r[3]), used)))
redis.call('ZADD', L, lease_end, sid)
for i = 4, #KEYS do
  redis.call('ZADD', KEYS[i], lease_end, sid)
  redis.call('PEXPIRE', KEYS[i], int(2 * lease))
end
return {w[4] and -6 or 1, held + grow, available - grow}

-- Admit one stream: check every limit, then take from all of them, or from none.
-- The hold is what the stream may spend before it asks again: `hold` where the balance is ample, less near its end
-- (an equal share of half of it among the open streams), but at least `hold_min`.
-- KEYS: wallet record leases buckets* slots*
-- ARGV: sid nonce hold_min hold lease_ms facts n_buckets (limit period_ms burst cost)* n_slots (max)*
-- returns {code, index, retry_after_ms, held, available}
--   1 admitted   2 admitted before (own retry)   4 already finished
--  -1 no wallet  -2 no credit  -4 bucket [index] empty  -5 slots [index] full  -6 suspended
--  -7 costs more than bucket [index] can ever hold      -8 no credit, but leases have run out: reap, then retry
-- time: TIME of the server
local W, R, L = KEYS[1], KEYS[2], KEYS[3]
local sid, nonce, hold_min, hold = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, facts = tonumber(ARGV[5]), ARGV[6]
local a, k = 7, 4

local w = redis.call('HMGET', W, 'g', 's', 'h', 'x')
local available = num(w[1]) - num(w[2]) - num(w[3])
local r = redis.call('HMGET', R, 'st', 'no', 'h')
if r[1] then
  if r[1] == 'open' and r[2] == nonce then return {2, 0, 0, num(r[3]), available} end
  return {4, 0, 0, 0, available}
end
if not w[1] then return {-1, 0, 0, 0, 0} end
if w[4] then return {-6, 0, 0, 0, available} end
if hold_min > available then
  if redis.call('ZCOUNT', L, '-inf', int(now)) > 0 then return {-8, 0, 0, 0, available} end
  return {-2, 0, 0, 0, available}
end
local share = math.floor(available / (2 * (redis.call('ZCARD', L) + 1)))
hold = math.min(hold, math.max(hold_min, share))

local buckets = {}
local n = tonumber(ARGV[a]); a = a + 1
for i = 1, n do
  local key, limit, period, burst, cost = KEYS[k], tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  k = k + 1; a = a + 4
  if cost > burst then return {-7, i, 0, 0, available} end
  local level, full = bucket_read(key, limit, period, burst)
  local need = cost * period
  if need > level then return {-4, i, math.ceil((need - level) / limit), 0, available} end
  buckets[i] = {key, level - need, full, limit}
end
local slots = {}
n = tonumber(ARGV[a]); a = a + 1
for i = 1, n do
  local key, max = KEYS[k], tonumber(ARGV[a])
  k = k + 1; a = a + 1
  if redis.call('ZCOUNT', key, '(' .. int(now), '+inf') >= max then return {-5, i, 0, 0, available} end
  slots[i] = key
end

-- Everything passed: from here on only writes.
local lease_end = int(now + lease)
redis.call('HINCRBY', W, 'h', int(hold))
redis.call('HSET', R, 'st', 'open', 'no', nonce, 'h', int(hold), 'u', '0', 't0', int(now), 'm', facts)
redis.call('ZADD', L, lease_end, sid)
for _, b in ipairs(buckets) do bucket_write(b[1], b[2], b[3], b[4]) end
for _, key in ipairs(slots) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', int(now))
  redis.call('ZADD', key, lease_end, sid)
  redis.call('PEXPIRE', key, int(2 * lease))
end
return {1, 0, 0, hold, available - hold}

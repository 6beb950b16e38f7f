-- Capacity that accounts share (a tier's, a model's), which lies in another slot than any account's money.
-- `acquire` takes from every limit or from none; `touch` renews; `release` gives the slot back and turns the token
-- estimate into the true figure, once: only while the permit exists. A permit nobody renews ends by itself.
-- KEYS: permits buckets* slots*
-- ARGV: op sid lease_ms estimate tokens refund limits
-- returns {code, index, retry_after_ms, {shadowed}}; index and shadowed count buckets, then slots, from 1
--   1 done   2 done before, or nothing to do   -4 bucket empty   -5 slots full   -7 more than the bucket ever holds
-- time: TIME of the server
local P, op, sid, lease = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local estimate, tokens, requests = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1' and 0 or 1
local _, buckets, slots = limits_read(2)
local permit = tonumber(redis.call('ZSCORE', P, sid) or 0) > now
local lease_end, shadowed = int(now + lease), {}

if op == 'release' then
  if not permit then return {2, 0, 0, {}} end
  buckets_read(buckets)
  for _, b in ipairs(buckets) do
    local change = b[4] == 1 and tokens - estimate or requests - 1
    if change ~= 0 then bucket_write(b, b.level - change * b[2]) end
  end
  for _, s in ipairs(slots) do redis.call('ZREM', s.key, sid) end
  redis.call('ZREM', P, sid)
  return {1, 0, 0, {}}
end

if op == 'acquire' then
  if permit then return {2, 0, 0, {}} end
  buckets_read(buckets)
  for i, b in ipairs(buckets) do
    local cost = b[4] == 1 and estimate or 1
    b.need = cost * b[2]
    if b.need > b.level then
      if b[5] == 1 then shadowed[#shadowed + 1] = i
      elseif cost > b[3] then return {-7, i, 0, {}}
      else return {-4, i, math.ceil((b.need - b.level) / b[1]), {}} end
    end
  end
  for i, s in ipairs(slots) do
    if slots_taken(s) >= s[1] then
      if s[2] == 0 then return {-5, #buckets + i, 1000, {}} end
      shadowed[#shadowed + 1] = #buckets + i
    end
  end
end

redis.call('ZADD', P, lease_end, sid)
redis.call('ZREMRANGEBYSCORE', P, '-inf', int(now))
redis.call('PEXPIRE', P, int(2 * lease))
if op == 'acquire' then
  for _, b in ipairs(buckets) do
    if b.need > 0 then bucket_write(b, b.level - b.need) end
  end
end
for _, s in ipairs(slots) do
  redis.call('ZADD', s.key, lease_end, sid)
  redis.call('PEXPIRE', s.key, LONGEST_STREAM_MS)
end
return {1, 0, 0, shadowed}

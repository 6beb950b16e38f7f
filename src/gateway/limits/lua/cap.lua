-- Capacity that accounts share (a tier's, a model's, a deployment's), which lies in another slot than their money.
-- `acquire` takes from every limit or from none; `touch` renews; `release` gives the slot back and turns the token
-- estimate into the true figure, once: only while the permit exists. A permit nobody renews ends by itself.
-- A window (rolling, in parts of whole seconds) gives no request back, and tokens only to the second in which they were
-- taken, so that no stretch of its length ever has more than the limit.
-- KEYS: permits windows* buckets* slots*
-- ARGV: op sid lease_ms estimate tokens refund limits
-- returns {code, index, retry_after_ms, {shadowed}}; index and shadowed count windows, buckets, then slots, from 1
--   1 done   2 done before, or nothing to do   -3 window full   -4 bucket empty   -5 slots full
--  -7 more than the bucket or window ever holds
-- time: TIME of the server
local P, op, sid, lease = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local estimate, tokens, requests = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1' and 0 or 1
local windows, buckets, slots = limits_read(2)
local score = tonumber(redis.call('ZSCORE', P, sid) or 0)
local permit = math.floor(score) > now
local lease_end, shadowed = int(now + lease), {}

-- The fraction of a permit's score is the second in which it was taken, modulo 4096; exact in a double.
local SECONDS, second = 4096, math.floor(now / 1000)
local function taken_part(x)
  local age = (second - (score % 1) * SECONDS) % SECONDS
  return math.floor((second - age) * 1000 / x[2])
end

local function window_post(x, part, posted, change)
  redis.call('HSET', x.key, 'sum', int(x.sum + change), 'lo', int(x.low), 'b' .. int(part), int(posted + change))
  redis.call('PEXPIRE', x.key, int(x[2] * (x[3] + 1)))
end

local function window_wait(x, excess)
  for part = x.low, x.part do
    excess = excess - num(redis.call('HGET', x.key, 'b' .. int(part)))
    if excess <= 0 then return (part + x[3] + 1) * x[2] - now end
  end
  return x[2]
end

if op == 'release' then
  if not permit then return {2, 0, 0, {}} end
  for _, x in ipairs(windows) do
    local change, part = x[5] == 1 and tokens - estimate or 0, taken_part(x)
    window_read(x)
    if change > 0 then window_post(x, x.part, x.posted, change)
    elseif change < 0 and part >= x.low then
      local posted = num(redis.call('HGET', x.key, 'b' .. int(part)))
      window_post(x, part, posted, math.max(change, -posted))
    end
  end
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
  for i, x in ipairs(windows) do
    window_read(x)
    x.need = x[5] == 1 and estimate or 1
    if x.sum + x.need > x[1] then
      if x[6] == 1 then shadowed[#shadowed + 1] = i
      elseif x.need > x[1] then return {-7, i, 0, {}}
      else return {-3, i, window_wait(x, x.sum + x.need - x[1]), {}} end
    end
  end
  buckets_read(buckets)
  for i, b in ipairs(buckets) do
    local cost = b[4] == 1 and estimate or 1
    b.need = cost * b[2]
    if b.need > b.level then
      if b[5] == 1 then shadowed[#shadowed + 1] = #windows + i
      elseif cost > b[3] then return {-7, #windows + i, 0, {}}
      else return {-4, #windows + i, math.ceil((b.need - b.level) / b[1]), {}} end
    end
  end
  for i, s in ipairs(slots) do
    if slots_taken(s) >= s[1] then
      if s[2] == 0 then return {-5, #windows + #buckets + i, 1000, {}} end
      shadowed[#shadowed + 1] = #windows + #buckets + i
    end
  end
end

local taken = op == 'acquire' and (second % SECONDS) / SECONDS or score % 1
redis.call('ZADD', P, lease_end .. string.sub(string.format('%.12f', taken), 2), sid)
redis.call('ZREMRANGEBYSCORE', P, '-inf', '(' .. int(now + 1))
redis.call('PEXPIRE', P, int(2 * lease))
if op == 'acquire' then
  for _, x in ipairs(windows) do window_post(x, x.part, x.posted, x.need) end
  for _, b in ipairs(buckets) do
    if b.need > 0 then bucket_write(b, b.level - b.need) end
  end
end
for _, s in ipairs(slots) do
  redis.call('ZADD', s.key, lease_end, sid)
  redis.call('PEXPIRE', s.key, LONGEST_STREAM_MS)
end
return {1, 0, 0, shadowed}

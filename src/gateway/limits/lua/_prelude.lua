-- Prepended to every script: numbers, time, token buckets.
--
-- Amounts are integers in micro-USD. Lua's numbers are doubles, exact to 2^53: grants stop at 2^52 and HINCRBY adds in
-- 64-bit integers. A script first reads and checks everything, then only writes, and its first write is a command that
-- Redis refuses when memory is full (HSET, HINCRBY, ZADD), so that it is refused before anything has changed.
local MAX_AMOUNT = 4503599627370496

local function num(v) return v and tonumber(v) or 0 end

-- Never tostring() or ..: both print %.14g. Adding 0 turns -0 into 0, since HINCRBY refuses "-0".
local function int(n) return string.format('%.0f', n + 0) end

-- The server's clock, in ms, is the only clock for anything shared.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Token bucket in exact integers: the level is stored times period_ms, so that a refill is elapsed_ms * limit.
local function bucket_read(key, limit, period, burst)
  local full = burst * period
  local v = redis.call('HMGET', key, 'l', 't')
  if not v[1] then return full, full end
  local level, last = tonumber(v[1]), tonumber(v[2])
  -- A bucket dated more than a period ahead saw the clock step back: do not freeze it until the clock is there again.
  if last > now + period then return full, full end
  if now > last then level = level + (now - last) * limit end
  return math.min(full, level), full
end

local function bucket_write(key, level, full, limit)
  redis.call('HSET', key, 'l', int(level), 't', int(now))
  redis.call('PEXPIRE', key, int(math.ceil((full - level) / limit) + 1000))
end

-- Prepended to every script: numbers, time, token buckets, windows, the revision fence.
--
-- Amounts are integers in micro-USD. Lua's numbers are doubles, exact to 2^53: grants stop at 2^52 and HINCRBY adds in
-- 64-bit integers. A script first reads and checks everything, then only writes, and its first write is a command that
-- Redis refuses when memory is full (HSET, HINCRBY, ZADD), so that it is refused before anything has changed.
local MAX_AMOUNT = 4503599627370496
local BARRIER_MS = 1500
local REVISION_TTL_MS = 86400000
local WINDOW_TTL_MS = 172800000

local function num(v) return v and tonumber(v) or 0 end

-- Never tostring() or ..: both print %.14g. Adding 0 turns -0 into 0, since HINCRBY refuses "-0".
local function int(n) return string.format('%.0f', n + 0) end

-- The server's clock, in ms, is the only clock for anything shared.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- The limits of a stream stand at the end of ARGV, from index a; their keys at the end of KEYS, from index k:
--   n_windows (limit p1 p2 p3 unit shadow)*   n_buckets (limit period_ms burst unit shadow)*   n_slots (max shadow)*
-- unit: 0 counts requests, 1 tokens, 2 money. shadow: 1 is only reported, never enforced.
-- A rolling window has p1 = width of its parts in ms, p2 = their number, p3 = 0. A calendar window has three boundaries
-- in ms: p1 the period before, p2 this one, p3 the next, so that a caller's clock may be wrong by a whole period.
local function limits_read(a, k)
  local lists = {}
  for list, width in ipairs({6, 5, 2}) do
    local n, items = tonumber(ARGV[a]), {}
    a = a + 1
    for i = 1, n do
      local item = {key = KEYS[k]}
      for j = 1, width do item[j] = tonumber(ARGV[a + j - 1]) end
      items[i], a, k = item, a + width, k + 1
    end
    lists[list] = items
  end
  return lists[1], lists[2], lists[3]
end

-- Token bucket {limit period_ms burst} in exact integers: the level is stored times period_ms, so that a refill is
-- elapsed_ms * limit. Returns level and full.
local function bucket_read(b)
  local full = b[3] * b[2]
  local v = redis.call('HMGET', b.key, 'l', 't')
  if not v[1] then return full, full end
  local level, last = tonumber(v[1]), tonumber(v[2])
  -- A bucket dated more than a period ahead saw the clock step back: do not freeze it until the clock is there again.
  if last > now + b[2] then return full, full end
  if now > last then level = level + (now - last) * b[1] end
  return math.min(full, level), full
end

local function bucket_write(b, level, full)
  redis.call('HSET', b.key, 'l', int(level), 't', int(now))
  redis.call('PEXPIRE', b.key, int(math.ceil((full - level) / b[1]) + 1000))
end

-- The part of a window that is now, and the oldest one that still counts.
local function window_parts(w)
  if w[4] == 0 then
    local part = math.floor(now / w[2])
    return part, part - w[3]
  end
  local part = now >= w[4] and w[4] or (now < w[3] and w[2] or w[3])
  return part, part
end

-- What was posted within a window and what open streams hold of it; parts that have left it are dropped.
local function window_read(w)
  local part, oldest = window_parts(w)
  local v = redis.call('HMGET', w.key, 'lo', 'sum', 'h')
  local low, sum = tonumber(v[1] or part), num(v[2])
  if low < oldest then
    local gone = {}
    for i = low, w[4] == 0 and math.min(oldest - 1, low + w[3]) or low do
      local amount = redis.call('HGET', w.key, 'b' .. int(i))
      if amount then sum = sum - tonumber(amount); gone[#gone + 1] = 'b' .. int(i) end
    end
    redis.call('HSET', w.key, 'lo', int(oldest), 'sum', int(sum))
    if #gone > 0 then redis.call('HDEL', w.key, unpack(gone)) end
  end
  return sum, num(v[3])
end

-- Change what is held of a window, and what is posted in it.
local function window_write(w, held, posted)
  if held ~= 0 then redis.call('HINCRBY', w.key, 'h', int(held)) end
  if posted ~= 0 then
    local part = window_parts(w)
    redis.call('HINCRBY', w.key, 'b' .. int(part), int(posted))
    redis.call('HINCRBY', w.key, 'sum', int(posted))
    local low = redis.call('HGET', w.key, 'lo')
    if not low or tonumber(low) > part then redis.call('HSET', w.key, 'lo', int(part)) end
  end
  redis.call('PEXPIRE', w.key, int((w[4] == 0 and w[2] * w[3] or w[4] - w[2]) + WINDOW_TTL_MS))
end

-- Every change on behalf of a gateway adds one to its revision of this account and is told to it. A gateway that knows
-- of a higher revision than this Redis has proof that acknowledged changes were lost (a lagging replica was promoted,
-- an old snapshot restored). Then nothing new is held for a moment, in which living gateways say what they hold.
-- Returns the time until which that goes on.
local function fence(W, V, G, known, seen, recovering)
  if seen <= known then return recovering end
  redis.call('HSET', W, 'rec', int(now + BARRIER_MS))
  redis.call('SET', V, int(seen), 'PX', REVISION_TTL_MS)
  redis.call('XADD', G, '*', 'op', 'rollback', 'sid', '', 'd', '0', 'o', '0', 'out', int(seen - known), 'rec', '{}')
  return now + BARRIER_MS
end

local function advance(V, known, seen)
  local revision = math.max(known, seen) + 1
  redis.call('SET', V, int(revision), 'PX', REVISION_TTL_MS)
  return revision
end

-- Prepended to every script, after the prelude: token buckets, windows and slots.
local LONGEST_STREAM_MS = '172800000'

-- The limits of a stream are the last argument, in MessagePack; their keys are the last of KEYS, from index k:
--   {windows {limit p1 p2 p3 unit shadow}*, buckets {limit period_ms burst unit shadow}*, slots {max shadow}*}
-- unit: 0 counts requests, 1 tokens, 2 money. shadow: 1 is only reported, never enforced.
-- A rolling window has p1 = width of its parts in ms, p2 = their number, p3 = 0. A calendar window has three boundaries
-- in ms: p1 the period before, p2 this one, p3 the next, so that a caller's clock may be wrong by a whole period.
-- Each limit becomes a table that has room for all that scripts note in it: growing one costs more than making it.
local function limits_read(k)
  local lists = cmsgpack.unpack(ARGV[#ARGV])
  local windows, buckets, slots = lists[1], lists[2], lists[3]
  for i = 1, #windows do
    local w = windows[i]
    windows[i] = {w[1], w[2], w[3], w[4], w[5], w[6], key = KEYS[k], part = 0, low = 0, sum = 0, held = 0, posted = 0,
      left = 0, need = 0}
    k = k + 1
  end
  for i = 1, #buckets do
    local b = buckets[i]
    buckets[i] = {b[1], b[2], b[3], b[4], b[5], key = KEYS[k], full = 0, level = 0, need = 0}
    k = k + 1
  end
  for i = 1, #slots do
    slots[i] = {slots[i][1], slots[i][2], key = KEYS[k]}
    k = k + 1
  end
  return windows, buckets, slots
end

-- Token buckets {limit period_ms burst} in exact integers: the level is stored times period_ms, so that a refill is
-- elapsed_ms * limit. Sets level and full of each; all of them are read at once, and one more key, of which the value
-- is returned.
local function buckets_read(buckets, key)
  local count = #buckets
  if count == 0 then return key and call('GET', key) end
  local names = {}
  for i, b in ipairs(buckets) do names[i] = b.key end
  names[count + 1] = key
  local values = call('MGET', unpack(names))
  for i, b in ipairs(buckets) do
    local v = values[i]
    b.full = b[3] * b[2]
    b.level = b.full
    if v then
      local level, last = string.match(v, '^(-?%d+) (%d+)$')
      level, last = tonumber(level), tonumber(last)
      -- A bucket dated more than a period ahead saw the clock step back: do not freeze it until the clock is there.
      if last <= now + b[2] then b.level = math.min(b.full, level + math.max(now - last, 0) * b[1]) end
    end
  end
  return values[count + 1]
end

-- A bucket may go into debt: as far as it takes while a stream runs (`deep`), and by one burst at most once the stream
-- is settled, so that a figure that turns out lower does not give back more than was taken. It expires when it would
-- be full.
local function bucket_write(b, level, deep)
  b.level = math.min(b.full, level)
  if not deep then b.level = math.max(b.level, -b.full) end
  call('SET', b.key, int(b.level) .. ' ' .. now_text,
    'PX', int(math.ceil((b.full - b.level) / b[1]) + 1000))
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

-- Sets sum, what was posted within a window, and held, what open streams hold of it; parts that left it are dropped.
local function window_read(w)
  local part, oldest = window_parts(w)
  local v = call('HMGET', w.key, 'lo', 'sum', 'h', 'b' .. int(part))
  local low, sum, posted = tonumber(v[1] or part), num(v[2]), num(v[4])
  -- A calendar only goes on: who knows an older one, or one of another time zone, counts in its newest period.
  if w[4] > 0 and low > part then part, oldest, posted = low, low, sum end
  w.part, w.low, w.sum, w.held, w.posted = part, math.min(math.max(low, oldest), part), sum, num(v[3]), posted
  if low < oldest then
    local gone = {}
    for i = low, w[4] == 0 and math.min(oldest - 1, low + w[3]) or low do
      local amount = call('HGET', w.key, 'b' .. int(i))
      if amount then sum = sum - tonumber(amount); gone[#gone + 1] = 'b' .. int(i) end
    end
    call('HSET', w.key, 'lo', int(oldest), 'sum', int(sum))
    if #gone > 0 then call('HDEL', w.key, unpack(gone)) end
    w.sum = sum
  end
end

-- Change what is held of a window that was read, and what is posted in it.
local function window_write(w, held, posted)
  if posted == 0 then
    if held ~= 0 then call('HSET', w.key, 'h', int(w.held + held)) end
    return
  end
  call('HSET', w.key, 'h', int(w.held + held), 'sum', int(w.sum + posted), 'lo', int(w.low),
    'b' .. int(w.part), int(w.posted + posted))
end

-- Keep a window for as long as a part of it counts or a stream that was admitted now may hold of it.
local function window_keep(w)
  call('PEXPIRE', w.key, int((w[4] == 0 and w[2] * w[3] or w[4] - w[2]) + LONGEST_STREAM_MS))
end

-- How many leases of a slots key run; those that ran out are only cleared away where they could be in the way.
local function slots_taken(s)
  local taken = call('ZCARD', s.key)
  if taken >= s[1] and call('ZREMRANGEBYSCORE', s.key, '-inf', now_text) > 0 then
    taken = call('ZCARD', s.key)
  end
  return taken
end

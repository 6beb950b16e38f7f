-- Keep one response, and the ones before it for as long.
-- What is past its end goes, and then the oldest, until the account has room.
--   responses  HASH id -> the response, "<" .. id -> "<bytes> <id before it>", bytes -> sum of all
--   ends       ZSET id -> when it goes (ms)
-- KEYS: responses ends
-- ARGV: id previous body ttl_ms account_bytes_max chain_max is_update
-- returns {how many went for want of room | -1 there was none to update}
-- time: TIME of the server
local R, E = KEYS[1], KEYS[2]
local id, previous, body = ARGV[1], ARGV[2], ARGV[3]
local ttl_ms, bytes_max, chain_max = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if ARGV[7] == '1' and redis.call('HEXISTS', R, id) == 0 then return {-1} end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function int(n) return string.format('%.0f', n) end

local function link(of)
  local text = redis.call('HGET', R, '<' .. of)
  if not text then return 0, '' end
  local bytes, before = string.match(text, '^(%d+) (.*)$')
  return tonumber(bytes), before
end

local bytes = tonumber(redis.call('HGET', R, 'bytes') or 0)
local function drop(of)
  bytes = bytes - link(of)
  redis.call('HDEL', R, of, '<' .. of)
  redis.call('ZREM', E, of)
end

-- First what Redis refuses when it is full, before anything has changed.
bytes = bytes + #body - link(id)
local ending = int(now + ttl_ms)
redis.call('HSET', R, id, body, '<' .. id, int(#body) .. ' ' .. previous, 'bytes', int(bytes))
redis.call('ZADD', E, ending, id)
for _ = 2, chain_max do
  if previous == '' or not redis.call('ZSCORE', E, previous) then break end
  redis.call('ZADD', E, ending, previous)
  _, previous = link(previous)
end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', E, '-inf', int(now))) do drop(old) end
local evicted = 0
while bytes > bytes_max do
  local oldest = redis.call('ZRANGE', E, 0, 1)
  local victim = oldest[1] == id and oldest[2] or oldest[1]
  if victim == nil or victim == id then break end
  drop(victim)
  evicted = evicted + 1
end
redis.call('HSET', R, 'bytes', int(bytes))
redis.call('PEXPIRE', R, int(ttl_ms))
redis.call('PEXPIRE', E, int(ttl_ms))
return {evicted}

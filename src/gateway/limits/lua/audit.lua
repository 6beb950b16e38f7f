-- What there is of one account at one instant, for `gateway audit` and `gateway ledger export`. Writes nothing.
-- The records of open streams are found through the leases, so their keys are made here: they share the account's tag.
-- KEYS: wallet leases ledger grants account windows* buckets* slots*
-- ARGV: record_prefix streams_max windows buckets slots (the last three are counts)
-- returns {now, wallet, leases, records, last_id, grants, created, windows, buckets, slots}
--   records: {st h u n lim} for each lease, in their order; empty where there are more than streams_max
-- time: TIME of the server
local W, L, G, H, A = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local prefix, most = ARGV[1], tonumber(ARGV[2])

local clock = redis.call('TIME')
local leases = redis.call('ZRANGE', L, 0, -1, 'WITHSCORES')
local records = {}
if #leases <= 2 * most then
  for i = 1, #leases, 2 do
    records[#records + 1] = redis.call('HMGET', prefix .. leases[i], 'st', 'h', 'u', 'n', 'lim')
  end
end
local last = redis.call('XREVRANGE', G, '+', '-', 'COUNT', 1)[1]

local k = 5
local function each(count, read)
  local found = {}
  for _ = 1, tonumber(count) do
    k = k + 1
    found[#found + 1] = read(KEYS[k])
  end
  return found
end
local windows = each(ARGV[3], function(key) return redis.call('HGETALL', key) end)
local buckets = each(ARGV[4], function(key) return redis.call('GET', key) end)
local slots = each(ARGV[5], function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end)
return {
  string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000)), redis.call('HGETALL', W), leases, records,
  last and last[1] or '', redis.call('HGETALL', H), redis.call('HGET', A, 'created'), windows, buckets, slots,
}

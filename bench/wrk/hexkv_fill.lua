-- PUT 256-byte values to as many keys as there are requests, one after the other
local val = string.rep('x', 256)
local n = 0
function request()
  n = n + 1
  return wrk.format('PUT', string.format('/api/kv/million/%08d', n), {['Content-Type'] = 'application/octet-stream'}, val)
end

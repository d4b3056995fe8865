-- For wrk: sends images in turn and prints one line of JSON.
--   wrk … -s serve_load.lua URL -- MULTIPART PAUSE IMAGE…
-- MULTIPART 1 sends each image as the form field `file`. PAUSE: mean seconds between the requests of
-- one connection, exponentially distributed; 0 sends the next request with each answer.

local bodies, at, pause = {}, 0, 0

local function read(path)
  local file = assert(io.open(path, "rb"))
  local data = file:read("*a")
  file:close()
  return data
end

function init(arguments)
  local multipart = arguments[1] == "1"
  pause = tonumber(arguments[2])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "image/jpeg"
  local boundary = "edgelung-benchmark"
  if multipart then
    wrk.headers["Content-Type"] = "multipart/form-data; boundary=" .. boundary
  end
  for i = 3, #arguments do
    local data = read(arguments[i])
    if multipart then
      data = "--" .. boundary .. "\r\nContent-Disposition: form-data; name=\"file\"; " ..
        "filename=\"tile.jpeg\"\r\nContent-Type: image/jpeg\r\n\r\n" .. data ..
        "\r\n--" .. boundary .. "--\r\n"
    end
    bodies[#bodies + 1] = wrk.format(nil, nil, nil, data)
  end
end

function request()
  at = at % #bodies + 1
  return bodies[at]
end

function delay()
  if pause == 0 then return 0 end
  return math.floor(-math.log(1 - math.random()) * pause * 1000)
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
  local answered = summary.requests - errors.status
  io.write(string.format(
    '{"requests_per_second": %.1f, "requests": %d, "not_200": %d, "p50_ms": %.2f, ' ..
    '"p90_ms": %.2f, "p99_ms": %.2f, "max_ms": %.2f}\n',
    answered / (summary.duration / 1e6), summary.requests, failed,
    latency:percentile(50) / 1000, latency:percentile(90) / 1000,
    latency:percentile(99) / 1000, latency.max / 1000))
end

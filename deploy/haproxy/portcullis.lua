-- Asks Portcullis whether a request may pass. If it may, the identity headers, and cookies and credentials without Portcullis's own, are set;
-- if not, or if there is no answer, the client gets Portcullis's answer, or 503, and the request ends here.
local portcullis = "http://127.0.0.1:8080/.pomerium/auth/haproxy"

-- Concern one connection, or are set below.
local left_out = {
    ["connection"] = true, ["keep-alive"] = true, ["proxy-connection"] = true, ["te"] = true, ["trailer"] = true,
    ["transfer-encoding"] = true, ["upgrade"] = true, ["content-length"] = true, ["expect"] = true, ["host"] = true,
    ["x-forwarded-method"] = true, ["x-forwarded-host"] = true, ["x-forwarded-uri"] = true, ["x-forwarded-for"] = true,
}

local function end_here(txn, status, headers, body)
    local reply = txn:reply({ status = status, body = body })
    for name, values in pairs(headers) do
        if not left_out[name] then
            for _, value in pairs(values) do
                reply:add_header(name, value)
            end
        end
    end
    txn:done(reply)
end

core.register_action("portcullis", { "http-req" }, function(txn)
    local asked = {}
    local host = ""
    for name, values in pairs(txn.http:req_get_headers()) do
        if name == "host" then
            host = values[0]
        elseif not left_out[name] then
            local lines = {}
            for at = 0, #values do
                table.insert(lines, values[at])
            end
            asked[name] = lines
        end
    end
    asked["x-forwarded-method"] = { txn.f:method() }
    asked["x-forwarded-host"] = { host }
    asked["x-forwarded-uri"] = { txn.f:pathq() }
    asked["x-forwarded-for"] = { txn.f:src() }
    asked["x-forwarded-proto"] = { txn.f:ssl_fc() == 1 and "https" or "http" }

    local answer = core.httpclient():get({ url = portcullis, headers = asked, timeout = 5000 })
    if not answer or not answer.status or answer.status == 0 then
        return end_here(txn, 503, {}, "It cannot be decided now whether this request may pass.\n")
    end
    if answer.status ~= 200 then
        return end_here(txn, answer.status, answer.headers, answer.body)
    end
    for name, values in pairs(answer.headers) do
        if name == "cookie" or name == "authorization" or name:sub(1, 11) == "x-pomerium-" then
            txn.http:req_set_header(name, values[0])
        end
    end
end)

-- wrk: the same upload again and again. wrk ... -- SIZE
local body
function init(args)
	body = string.rep("x", tonumber(args[1]))
	wrk.method, wrk.body, wrk.path = "POST", body, "/upload"
end

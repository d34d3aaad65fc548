// A web server in the sandbox, reached from outside. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY.
// The sandbox's host goes into the Host header, so that no name has to resolve.
import assert from 'node:assert/strict'
import http from 'node:http'
import { Sandbox } from 'e2b'

const gateway = new URL(process.env.E2B_SANDBOX_URL)

function get(host) {
  return new Promise((resolve, reject) => {
    const options = { host: gateway.hostname, port: gateway.port, path: '/', headers: { host } }
    http.get(options, async (response) => {
      let body = ''
      for await (const chunk of response) body += chunk
      resolve({ status: response.statusCode, body })
    }).on('error', reject)
  })
}

const sandbox = await Sandbox.create()
try {
  await sandbox.files.write('site/index.html', '<h1>served from the sandbox</h1>')
  await sandbox.commands.run('python3 -m http.server 8000 --bind 127.0.0.1 --directory site', { background: true })
  await sandbox.commands.run('until curl -s -o /dev/null http://127.0.0.1:8000/; do sleep 0.1; done')

  const open = await get(sandbox.getHost(8000))
  assert.equal(open.status, 200)
  assert(open.body.includes('served from the sandbox'))
  console.log(`http://${sandbox.getHost(8000)}/ answers`)

  const closed = await get(sandbox.getHost(8001))
  assert.equal(closed.status, 502)
  assert(closed.body.includes('port is not open'))
} finally {
  await sandbox.kill()
}
console.log('ok')

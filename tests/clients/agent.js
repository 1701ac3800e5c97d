// A Node agent with a pool of kept connections: many requests at a time, refused ones among them.
const http = require('http');
const url = new URL(process.argv[2]);
const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
const send = (method, path, body, headers = {}) => new Promise((resolve, reject) => {
  const request = http.request({ agent, host: url.hostname, port: url.port, method, path, headers }, (answer) => {
    let text = '';
    answer.on('data', (piece) => { text += piece; });
    answer.on('end', () => resolve({ status: answer.statusCode, headers: answer.headers, text }));
  });
  request.on('error', (error) => reject(new Error(`${method} ${path} (${body ? body.length : 0} bytes): ${error.message}`)));
  request.end(body);
});
const one = async (number) => {
  const path = `/api/kv/agent-${number}`;
  const expected = [
    [await send('PUT', path, `v${number}`), 200],
    [await send('PUT', path + '?x=1', 'short'), 400],
    [await send('PUT', path + '?x=1', Buffer.alloc(200000)), 400],
    [await send('PUT', path, Buffer.alloc(3000000)), 413],
    [await send('GET', path), 200],
  ];
  for (const [answer, status] of expected) {
    if (answer.status !== status) throw new Error(`${path}: ${answer.status}, not ${status}: ${answer.text}`);
  }
  if (expected[4][0].text !== `v${number}`) throw new Error(`${path} has ${expected[4][0].text}`);
};
Promise.all(Array.from({ length: 64 }, (_, number) => one(number))).then(
  () => { agent.destroy(); console.log('as expected'); },
  (error) => { console.error(error.message); process.exit(1); },
);
